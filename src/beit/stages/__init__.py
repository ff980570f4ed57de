"""What the training verbs share: open the data, build the model, start values, announce."""

"""One decoded image -> what a network is shown, as uint8."""

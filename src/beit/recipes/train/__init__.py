"""`beit train` and `beit plan`: journeys, which are made of verbs."""

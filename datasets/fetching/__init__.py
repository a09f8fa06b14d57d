"""Where to get each data set and weights file, what must be there, and how it is fetched."""

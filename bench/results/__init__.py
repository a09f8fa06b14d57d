"""What a run leaves on disk: typed records, and the folder that holds them."""

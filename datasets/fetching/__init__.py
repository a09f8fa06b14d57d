"""The catalogue of data sets and weights files, and how to fetch them: addresses, expected files, download, archives."""

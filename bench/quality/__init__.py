"""Full-reference image quality: what a metric is, and how well its values agree with people's scores."""

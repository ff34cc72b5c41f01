"""What is known of each architecture: key tables, dimensions and configs."""

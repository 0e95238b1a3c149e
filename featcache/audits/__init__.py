"""Vectors, labels and looks enter; twins, suspect labels, outliers and pictures that show nothing leave."""

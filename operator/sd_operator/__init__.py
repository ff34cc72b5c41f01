"""The operator: watches StableDiffusionModel resources and runs loader Jobs for them."""

"""The models that fill the four roles, and the profiles that choose them."""

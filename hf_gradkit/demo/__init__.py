"""`gradkit demo`: each chapter runs one main job offline, on a tiny model and synthetic data with known truth."""

# Chapter -> module with `run(folder)`, and what it shows.
CHAPTERS = {"reweighting": ("hf_gradkit.demo.reweighting", "SFT that weights examples by their loss (LinUpper)")}
DEFAULT_CHAPTER = "reweighting"

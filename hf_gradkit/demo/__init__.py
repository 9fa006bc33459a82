"""`gradkit demo`: each chapter runs one main job offline, on a tiny model and synthetic data with known truth."""

# Chapter -> module with `run(folder)` and `prepare(folder)`, and what it shows.
CHAPTERS = {
    "entanglement": ("hf_gradkit.demo.entanglement", "TRL's DPO lowers the chosen answers; see why, and one remedy"),
    "reweighting": ("hf_gradkit.demo.reweighting", "SFT that weights examples by their loss (LinUpper)"),
    "preference": ("hf_gradkit.demo.preference", "DPO, MADPO and RPO on preference pairs with a known true reward"),
}
DEFAULT_CHAPTER = "entanglement"

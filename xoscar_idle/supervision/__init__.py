"""The life of the sub-pools of a main pool: what they died of, and whether they do anything."""

"""The emoji data set: glyphs of a font, captions in many languages, scenes, and what is held out."""

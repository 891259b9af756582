"""The packed corpus: downloads, preprocessing, shards and their reader."""

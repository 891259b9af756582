"""Measuring and drawing: speed, studies, baselines, pictures. Uses the engine; imported by scripts only."""

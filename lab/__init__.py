"""Measuring and looking: speed, studies, yardsticks, pictures. Stands on the engine; nothing stands on it."""

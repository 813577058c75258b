"""Sources of training pairs: photographs, warps, light, rendered and posed scenes, teachers."""

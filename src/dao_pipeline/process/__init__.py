"""What takes crystals to noise and back: diffusion and flow matching, their samplers and guidance."""

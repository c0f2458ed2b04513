"""Latent-diffusion inpainting: autoencoder, denoiser, samplers, and the pipeline that keeps the foreground."""

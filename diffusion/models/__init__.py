"""Networks, on the diffusers contract: `from_pretrained`, `save_pretrained`, safetensors. Import them where they are used."""

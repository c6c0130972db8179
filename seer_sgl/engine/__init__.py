"""What touches SGLang processes: launch, watch, and the platform for machines without a GPU."""

from training.aligning.fitting import fit_aligner

__all__ = ["fit_aligner"]

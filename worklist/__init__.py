"""What a modality talks to: Modality Worklist and MPPS."""

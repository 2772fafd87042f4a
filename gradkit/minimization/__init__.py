"""An optimizer run on a deterministic function until a stated test holds, or it says why not."""

"""What may happen to pixels and features, as pure functions whose parameters are drawn first; no slot, no method."""

"""One step of training: guard, measure, judge, direction, smoothing, rate, advance."""

"""Single changes of the package that the fast tests must notice.

`python -m tests.mutations` makes each change in a copy, runs the tests named beside it and
counts the changes that no test saw. A change that survives is a property that no test states.
"""

"""Adam in the eigenbasis of Kronecker factors (the SOAP and Shampoo family)."""

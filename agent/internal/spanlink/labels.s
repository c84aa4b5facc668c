// An assembly file in the package lets the compiler accept the functions without a body in labels.go.

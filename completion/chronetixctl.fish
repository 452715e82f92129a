# fish reads this file at the first Tab after chronetixctl; the installed program knows the rest.
chronetixctl completion fish | source

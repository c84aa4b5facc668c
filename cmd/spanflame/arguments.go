package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// orSaved returns the arguments of a command, or as many times the directory to which agents save as it needs.
func orSaved(args []string, needs int) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	dir, err := savedDir("")
	if err != nil {
		return nil, err
	}
	return slices.Repeat([]string{dir}, needs), nil
}

// argCount checks that there are at least least arguments and, if most is not 0, at most most. want names them for
// the error.
func argCount(want string, least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if n := len(args); n < least || most > 0 && n > most {
			return fmt.Errorf("%s: want %s, got %d; see %s --help", cmd.Name(), want, n, cmd.CommandPath())
		}
		return nil
	}
}

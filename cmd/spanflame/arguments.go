package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

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

package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// takes is a check for at least least arguments and, if most is not 0, for at most that many. What it wants is said
// in words.
func takes(want string, least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if n := len(args); n < least || most > 0 && n > most {
			return fmt.Errorf("%s: want %s, got %d; see %s --help", cmd.Name(), want, n, cmd.CommandPath())
		}
		return nil
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"spanflame/internal/incidentfile"
	"spanflame/internal/query"
	"spanflame/internal/redact"
	"spanflame/viewer/source"
)

func newIncidentCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "incident ADDRESS",
		Short: "Have a running service write down what just happened, and fetch it",
		Long: `Have the agent in a service write an incident bundle, and save it here. ADDRESS is that of the operator's listener, such as
http://127.0.0.1:16060; a token is the password in it. The bundle is a zip: unpack it, and open index.html in a browser.
The service keeps a copy.`,
		Example: `  spanflame incident http://127.0.0.1:16060
  spanflame incident http://any:TOKEN@127.0.0.1:16060 --output before.zip`,
		Args: argCount("the address of one operator's listener, such as http://127.0.0.1:16060", 1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := fetchIncident(cmd.Context(), args[0], output)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: unpack it, and open index.html in a browser\n", name)
			return err
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "file to write, which must not exist (default the bundle's own name, in the working directory)")
	return cmd
}

// fetchIncident saves a new bundle as the file, or under its own name, and returns the name.
func fetchIncident(ctx context.Context, address, file string) (string, error) {
	if !source.IsAddress(address) {
		return "", fmt.Errorf("address %q: want that of an operator's listener, such as http://127.0.0.1:16060", redact.URL(address))
	}
	name, bundle, err := query.NewListener(address).Incident(ctx)
	if err != nil {
		return "", err
	}
	defer bundle.Close()
	if file == "" {
		if _, err := incidentfile.ParseFile(name); err != nil { // the name is the server's choice
			return "", fmt.Errorf("%s: %w; name a file with --output", redact.URL(address), err)
		}
		file = name
	}
	f, err := os.OpenFile(filepath.Clean(file), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%s exists: name another file with --output", file)
	}
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, bundle)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("%s: %w", file, err), os.Remove(file))
	}
	return file, nil
}

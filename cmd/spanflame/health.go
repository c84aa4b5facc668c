package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"spanflame/internal/redact"
)

// healthTimeout limits the time of one check.
const healthTimeout = 4 * time.Second

// newHealthCommand lets a container without a shell check its own health.
func newHealthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health URL",
		Short: "Exit with 0 if URL answers with status 200, else with 1",
		Args:  argCount("one URL, such as http://127.0.0.1:8080/readyz", 1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), healthTimeout)
			defer cancel()
			return checkHealth(ctx, args[0])
		},
	}
}

func checkHealth(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil { // which quotes the address
		return fmt.Errorf("address %q: want one such as http://127.0.0.1:8080/readyz", redact.URL(url))
	}
	// No proxy and no redirects: only the answer of the address itself counts.
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // as much of it as can be read
		return fmt.Errorf("%s: status %d: %q", req.URL.Redacted(), resp.StatusCode, b)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

// Over a real socket every answer and every failure is the same as without one.
func TestOverSocket(t *testing.T) {
	t.Parallel()
	for _, backend := range []*controltest.Fake{
		{},
		{Err: &control.Error{Kind: control.KindToken, Code: "token-removed", Title: "The token is not there", Hint: "insert it"}},
	} {
		socket := filepath.Join(t.TempDir(), "control.sock")
		server, err := control.Listen(control.ServerOptions{Socket: socket, Backend: backend})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve() }()
		client, err := dial(socket)
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"status"},
			{"connections"},
			{"up", "a-b"},
			{"up", "a-c"},
			{"up", "a x/y"},
			{"down", "a-b"},
			{"policy", "check", "-"},
			{"policy", "install", "-"},
			{"audit", "tail", "-n", "2"},
			{"counters"},
			{"status", "--json"},
			{"explain", "--from", "10.2.1.9", "--to", "10.1.2.10", "--protocol", "tcp", "--port", "104"},
			{"explain", "--from", "10.2.1.9", "--to", "10.3.1.7", "--protocol", "tcp", "--port", "104", "--json"},
		} {
			want, got := runWith(backend, nil, false, args...), runWith(client, nil, false, args...)
			if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
				t.Errorf("%v (-direct +socket):\n%s", args, diff)
			}
		}
		if err := errors.Join(server.Shutdown(context.WithoutCancel(t.Context())), <-served); err != nil {
			t.Error(err)
		}
	}
}

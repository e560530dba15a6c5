package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"wardgate/internal/testvectors"
	"wardgate/router/control"
)

const (
	beginReference = "<!-- begin reference: made by go test ./cmd/wardgate -run TestDocs -update -->\n"
	endReference   = "<!-- end reference -->\n"
)

// reference is what --help says of every command.
func reference(t *testing.T) string {
	t.Helper()
	tree := (&cli{out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: time.Now, getenv: os.Getenv}).rootCommand()
	var b strings.Builder
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		r := runWith(&fake{}, nil, false, args...)
		if r.exit != exitOK {
			t.Errorf("%v: exit %d\n%s", args, r.exit, r.err)
		}
		if !cmd.HasSubCommands() || cmd == tree {
			fmt.Fprintf(&b, "\n### %s\n\n```\n%s```\n", cmd.CommandPath(), strings.TrimLeft(r.out, "\n"))
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(tree)
	b.WriteString("\n")
	return b.String()
}

// docs/cli.md says of every command what --help says, and of the exit codes what they are.
func TestDocs(t *testing.T) {
	t.Parallel()
	file := filepath.Join(testvectors.Root(), "docs", "cli.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(text), beginReference)
	old, tail, ok2 := strings.Cut(rest, endReference)
	if !ok1 || !ok2 {
		t.Fatalf("docs/cli.md: expected the lines\n%s%s", beginReference, endReference)
	}
	want := reference(t)
	if *update {
		if err := os.WriteFile(file, []byte(head+beginReference+want+endReference+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, old); diff != "" {
		t.Errorf("docs/cli.md is not what --help says (-help +docs); make it anew with: go test ./cmd/wardgate -run TestDocs -update\n%s", diff)
	}

	var codes []int
	for _, m := range regexp.MustCompile(`(?m)^\| (\d) \|`).FindAllStringSubmatch(head, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, n)
	}
	if diff := cmp.Diff([]int{exitOK, exitFailure, exitUsage, exitRefused, exitUnreachable, exitToken}, codes); diff != "" {
		t.Errorf("exit codes of docs/cli.md (-code +docs):\n%s", diff)
	}
	for _, word := range []string{socketVariable, control.DefaultSocket, "NO_COLOR"} {
		if !strings.Contains(head, word) {
			t.Errorf("docs/cli.md does not mention %s", word)
		}
	}
}

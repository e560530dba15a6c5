package main

import "github.com/spf13/cobra"

// extraCommands are the commands that need no daemon and live in files of their own.
func extraCommands() []*cobra.Command { return nil }

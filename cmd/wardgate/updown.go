package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

// maxWait is the longest that the daemon lets anybody wait for a connection.
const maxWait = 60 * time.Second

func (c *cli) upCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "up NAME",
		Short: "Start a connection and wait until it is up",
		Long: "Start a connection and wait until it is up. The exit status is 0 only when it is. A\n" +
			"connection that is still being set up when the wait is over goes on by itself.",
		Args:              exactly("the NAME of a connection"),
		ValidArgsFunction: c.completeConnection,
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait <= 0 || wait > maxWait {
				return badUsage("the default is 30s", "--wait: expected more than 0s and at most %v, came %v", maxWait, wait)
			}
			d, err := c.dial(c.socketPath())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			x, err := d.Up(ctx, args[0])
			if err != nil {
				return err
			}
			if x == nil || x.State != control.ConnUp {
				return notUp(args[0], x, wait)
			}
			return c.answerConnection(x)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait, at most 60s")
	return cmd
}

// notUp says why a connection is not up.
func notUp(name string, x *control.Connection, wait time.Duration) error {
	e := &control.Error{Kind: control.KindTimeout, Code: "not-up-yet", Title: fmt.Sprintf("the connection %q is not up after %v", name, wait), Hint: "it goes on by itself; see: wardgate status"}
	switch {
	case x == nil:
	case x.LastError != nil:
		e = &control.Error{Kind: x.LastError.Kind, Code: x.LastError.Code, Title: fmt.Sprintf("the connection %q is not up: %s", name, lowerFirst(x.LastError.Title)), Detail: x.LastError.Detail, Hint: x.LastError.Hint}
	case x.State != control.ConnConnecting:
		e = &control.Error{Kind: control.KindUnavailable, Code: "not-up", Title: fmt.Sprintf("the connection %q is not up: it is %s", name, x.State), Hint: "see: wardgate status, wardgate audit tail"}
	}
	return e
}

func (c *cli) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down NAME",
		Short: "End a connection",
		Long: "End a connection, on both sides. One that is not up stays as it is. An on-demand connection\n" +
			"comes up again with the next packet that needs it, one that starts always by itself.",
		Args:              exactly("the NAME of a connection"),
		ValidArgsFunction: c.completeConnection,
		RunE: func(cmd *cobra.Command, args []string) error {
			x, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.Connection, error) { return d.Down(ctx, args[0]) })
			if err != nil {
				return err
			}
			if x.State == control.ConnUp || x.State == control.ConnClosing {
				return &control.Error{Kind: control.KindTimeout, Code: "not-down-yet", Title: fmt.Sprintf("the connection %q is still %s", args[0], x.State), Hint: "see: wardgate status"}
			}
			return c.answerConnection(x)
		},
	}
}

func (c *cli) answerConnection(x *control.Connection) error {
	return c.answer(x, func(p *printer) { printConnection(p, x, c.now()) })
}

// completeConnection offers the names of connections to the shell.
func (c *cli) completeConnection(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	d, err := c.dial(c.socketPath())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	list, err := d.Connections(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for i := range list {
		if plain(list[i].Name) == list[i].Name {
			out = append(out, list[i].Name+"\t"+plain(list[i].Peer)+", "+plain(list[i].Service))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

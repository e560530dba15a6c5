package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wardgate/router/control"
)

// maxPPKText bounds what is read as a key in base64, octets.
const maxPPKText = 4096

func (c *cli) ppkCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ppk", Short: "Postquantum preshared keys (RFC 8784)"}
	cmd.AddCommand(c.ppkAddCommand(), c.ppkListCommand(), c.ppkRemoveCommand())
	return cmd
}

func (c *cli) ppkAddCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "add ID",
		Short: "Store a key that was brought by hand, from standard input",
		Long: "Store a postquantum preshared key, read from standard input: base64 of 32 to 1024 random octets,\n" +
			"in one line. Make it once, with `openssl rand -base64 32`, and bring it to both devices by hand\n" +
			"or by a way that is safe against a quantum computer. ID is what the policy calls it (ppk_id).\n" +
			"Compare the check value with the other device's. A tunnel that stands with another key ends.",
		Args: exactly("the ID of a key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := c.readSecret(args[0])
			if err != nil {
				return err
			}
			defer clear(secret)
			k, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.PPK, error) {
				return d.PPKAdd(ctx, args[0], secret, replace)
			})
			if err != nil {
				return err
			}
			return c.answer(k, func(p *printer) {
				p.line("The key %s is stored. Its check value is %s: compare it with the other device's.", p.style(bold, plain(k.ID)), p.style(bold, plain(k.Check)))
				if len(k.Connections) == 0 {
					p.line("No connection of the policy in force uses it.")
				}
			})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "in place of the key of that ID that is there")
	return cmd
}

// readSecret reads a key in base64. At a terminal it is not shown.
func (c *cli) readSecret(id string) ([]byte, error) {
	var b []byte
	var err error
	if f, ok := c.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(c.err, "Key %s in base64: ", id)
		b, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(c.err)
	} else {
		b, err = io.ReadAll(io.LimitReader(c.in, maxPPKText+1))
	}
	if err != nil {
		return nil, failed(control.KindInternal, "no-key", "cannot read the key from standard input", "for example: wardgate ppk add "+id+" < FILE", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 || len(b) > maxPPKText {
		return nil, badUsage("make one with: openssl rand -base64 32", "standard input: expected a key in base64, came %d octets", len(b))
	}
	return b, nil
}

func (c *cli) ppkListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the keys that are there, and those that the policy wants",
		Long:  "List the postquantum preshared keys that are there, and those that the policy wants. The keys\nthemselves are never shown.",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, ctx, cancel, err := c.daemon(cmd)
			if err != nil {
				return err
			}
			defer cancel()
			list, err := d.PPKs(ctx)
			if err != nil {
				return err
			}
			if list == nil {
				list = []control.PPK{} // [] in JSON
			}
			return c.answer(list, func(p *printer) { c.printPPKs(p, list) })
		},
	}
}

func (c *cli) printPPKs(p *printer, list []control.PPK) {
	if len(list) == 0 {
		p.line("There are no postquantum preshared keys, and the policy wants none.")
		return
	}
	rows := [][]string{{"ID", "CHECK VALUE", "ADDED", "CONNECTIONS"}}
	for i := range list {
		k := &list[i]
		check, added, used := plain(k.Check), "", plainAll(k.Connections, ", ")
		switch {
		case k.Error != nil:
			check = "cannot be used: " + plain(k.Error.Detail)
		case !k.Present && k.Required:
			check = "MISSING"
		case !k.Present:
			check = "missing, optional"
		default:
			added = ago(c.now(), k.Added)
		}
		if used == "" {
			used = "none"
		}
		rows = append(rows, []string{plain(k.ID), check, added, used})
	}
	p.table("", rows)
}

func (c *cli) ppkRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Forget a key",
		Long:  "Forget a postquantum preshared key. Connections that require it end, and are not set up any more.",
		Args:  exactly("the ID of a key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.PPK, error) { return d.PPKRemove(ctx, args[0]) })
			if err != nil {
				return err
			}
			return c.answer(k, func(p *printer) {
				p.line("The key %s is gone.", p.style(bold, plain(k.ID)))
				if k.Required {
					p.line("The policy requires it: without it these connections are not set up: %s", plainAll(k.Connections, ", "))
				}
			})
		},
	}
}

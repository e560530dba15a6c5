package main

import (
	"context"
	"net/netip"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

func (c *cli) redirectCommand() *cobra.Command {
	var to string
	var all bool
	cmd := &cobra.Command{
		Use:   "redirect --to ADDRESS (NAME... | --all)",
		Short: "Send partners to another address of ours, before a line is taken down",
		Long: "Send the partners of connections to another address of ours, without a gap: they make a new\n" +
			"tunnel there, with all proofs, and the old one ends. Only partners that opened the connection\n" +
			"can be sent, and they go only where their own policy says that we are: one that does not go\n" +
			"within 30 s loses the old tunnel all the same. New connections come to the addresses in the\n" +
			"order of the partner's policy, as before.",
		ValidArgsFunction: c.completeConnection,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(to)
			switch {
			case to == "":
				return badUsage("for example: wardgate redirect --to 203.0.113.20 --all", "--to: expected an address of this router")
			case err != nil || addr.Zone() != "" || addr.Is4In6():
				return badUsage("for example 203.0.113.20 or 2001:db8::20", "--to: expected an address, came %.60q", to)
			case all == (len(args) > 0):
				return badUsage("see the names with: wardgate connections", "expected the NAMEs of connections, or --all")
			}
			rep, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.RedirectReport, error) {
				return d.Redirect(ctx, control.RedirectRequest{To: addr, Connections: args})
			})
			if err != nil {
				return err
			}
			return c.answer(rep, func(p *printer) { printRedirected(p, rep) })
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`address` of this router where they are to go")
	cmd.Flags().BoolVar(&all, "all", false, "all connections")
	return cmd
}

func printRedirected(p *printer, rep *control.RedirectReport) {
	told := 0
	for i := range rep.Connections {
		x := &rep.Connections[i]
		if x.Told {
			told++
			p.line("  %s: %s", p.style(bold, plain(x.Name)), p.style(green, "told to go"))
		} else {
			p.line("  %s: stays, %s", p.style(bold, plain(x.Name)), plain(x.Why))
		}
	}
	p.line("%s sent to %s. Where they are says: wardgate status", plural(told, "partner"), rep.To)
}

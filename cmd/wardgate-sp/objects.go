package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wardgate/sp/operator"
	"wardgate/sp/registry"
)

// kind is how one kind of object is listed (T) and shown (U).
type kind[T, U any] struct {
	name, title string
	heading     string // of the list, columns by tab
	list        func(operator.API, context.Context, operator.Page) (*operator.List[T], error)
	row         func(*T) string
	show        func(operator.API, context.Context, string) (*U, error)
}

func objectCommand[T, U any](c *cli, k kind[T, U]) *cobra.Command {
	cmd := &cobra.Command{Use: k.name, Short: k.title}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List them", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			all := []T{}
			for p := (operator.Page{Limit: operator.MaxPage}); ; {
				l, err := k.list(api, ctx, p)
				if err != nil {
					return err
				}
				all = append(all, l.Items...)
				if p.After = l.Next; p.After == "" {
					break
				}
			}
			rows := make([]string, len(all))
			for i := range all {
				rows[i] = k.row(&all[i])
			}
			return c.print(cmd, all, table(k.heading, rows))
		})
	}}, &cobra.Command{Use: "show NAME", Short: "Show one with all that belongs to it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			v, err := k.show(api, ctx, strings.ToLower(args[0]))
			if err != nil {
				return err
			}
			b, err := json.MarshalIndent(v, "", "  ")
			if err != nil {
				return err
			}
			return c.print(cmd, v, string(b)+"\n")
		})
	}})
	return cmd
}

func (c *cli) memberCommand() *cobra.Command {
	return objectCommand(c, kind[operator.MemberItem, operator.Member]{
		name: "member", title: "Members", heading: "NAME\tDEVICES\tTITLE",
		list: operator.API.Members, show: operator.API.Member,
		row: func(m *operator.MemberItem) string { return fmt.Sprintf("%s\t%d\t%q", m.Name, m.DeviceCount, m.Title) },
	})
}

func (c *cli) contractCommand() *cobra.Command {
	return objectCommand(c, kind[registry.Contract, operator.Contract]{
		name: "contract", title: "Contracts", heading: "NAME\tSERVICE\tPARTIES\tFLOWS",
		list: operator.API.Contracts, show: operator.API.Contract,
		row: func(k *registry.Contract) string {
			return fmt.Sprintf("%s\t%s\t%s, %s\t%d", k.Name, k.Service, k.Parties[0].Device, k.Parties[1].Device, len(k.Flows))
		},
	})
}

func (c *cli) serviceCommand() *cobra.Command {
	cmd := objectCommand(c, kind[operator.ServiceItem, operator.Service]{
		name: "service", title: "Services (VPN groups)", heading: "NAME\tCATEGORY\tMEMBERS\tTITLE",
		list: operator.API.Services, show: operator.API.Service,
		row: func(s *operator.ServiceItem) string {
			return fmt.Sprintf("%s\t%s\t%d\t%q", s.Name, s.Category, s.MemberCount, s.Title)
		},
	})
	var why string
	ca := &cobra.Command{
		Use: "ca NAME", Short: "Make a service's CA, or the next one; or its pre-shared key", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, api operator.API) error {
				made, err := api.MakeServiceKey(ctx, args[0], operator.By{Who: who(), Why: why})
				if err != nil {
					return err
				}
				return c.print(cmd, made, made.Made+" is made; instances take it up within a minute\n")
			})
		},
	}
	ca.Flags().StringVar(&why, "why", "", "for the record")
	c.caFlags(ca)
	cmd.AddCommand(ca)
	return cmd
}

func (c *cli) deviceCommand() *cobra.Command {
	cmd := objectCommand(c, kind[registry.Device, operator.Device]{
		name: "device", title: "Devices", heading: "NAME\tMEMBER\tSTATE",
		list: operator.API.Devices, show: operator.API.Device,
		row: func(d *registry.Device) string { return fmt.Sprintf("%s\t%s\t%s", d.Name, d.Member, d.State) },
	})
	var reason, why string
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Shut a device out: its certificates, its connections, its policy", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(operator.Reasons, reason) {
				return fmt.Errorf("%w: --reason: expected %s, came %q", errUsage, strings.Join(operator.Reasons, ", "), reason)
			}
			return c.with(cmd, func(ctx context.Context, api operator.API) error {
				done, err := api.RevokeDevice(ctx, args[0], reason, operator.By{Who: who(), Why: why})
				if err != nil {
					return err
				}
				return c.print(cmd, done, fmt.Sprintf("%s is revoked (revision %d): %d certificates revoked, %d peers get new policies\n", done.Device, done.Revision, done.Certificates, len(done.Peers)))
			})
		},
	}
	revoke.Flags().StringVar(&reason, "reason", "stolen", "stolen, left, gone or withdrawn")
	revoke.Flags().StringVar(&why, "why", "", "for the history")
	cmd.AddCommand(revoke, c.devicePolicyCommand())
	return cmd
}

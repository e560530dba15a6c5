package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// kind is how one kind of object is listed and shown.
type kind[T any] struct {
	name, title string
	heading     string // of the list, columns by tab
	all         func(*registry.Registry) []T
	row         func(*registry.Registry, *T) string
	id          func(*T) string
	show        func(context.Context, *sp.Centre, *registry.Registry, *T) (any, error)
}

func objectCommand[T any](c *cli, k kind[T]) *cobra.Command {
	cmd := &cobra.Command{Use: k.name, Short: k.title}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List them", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.withRegistry(cmd, func(_ context.Context, _ *sp.Centre, r *registry.Registry) error {
			var b strings.Builder
			w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, k.heading)
			list := k.all(r)
			for i := range list {
				fmt.Fprintln(w, k.row(r, &list[i]))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			return c.print(cmd, orNone(list), b.String())
		})
	}}, &cobra.Command{Use: "show NAME", Short: "Show one with all that belongs to it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return c.withRegistry(cmd, func(ctx context.Context, centre *sp.Centre, r *registry.Registry) error {
			list := k.all(r)
			i := slices.IndexFunc(list, func(v T) bool { return strings.EqualFold(k.id(&v), args[0]) })
			if i < 0 {
				return fmt.Errorf("%w: there is no %s %q; see: wardgate-sp %s list", errUsage, k.name, args[0], k.name)
			}
			v, err := k.show(ctx, centre, r, &list[i])
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
	return objectCommand(c, kind[registry.Member]{
		name: "member", title: "Members", heading: "NAME\tDEVICES\tTITLE",
		all: (*registry.Registry).Members, id: func(m *registry.Member) string { return m.Name },
		row: func(r *registry.Registry, m *registry.Member) string {
			n := 0
			for range r.DevicesOf(m.Name) {
				n++
			}
			return fmt.Sprintf("%s\t%d\t%q", m.Name, n, m.Title)
		},
		show: func(_ context.Context, _ *sp.Centre, r *registry.Registry, m *registry.Member) (any, error) {
			devices := []string{}
			for d := range r.DevicesOf(m.Name) {
				devices = append(devices, d.Name)
			}
			return struct {
				*registry.Member
				Devices []string `json:"devices"`
			}{m, devices}, nil
		},
	})
}

func (c *cli) contractCommand() *cobra.Command {
	return objectCommand(c, kind[registry.Contract]{
		name: "contract", title: "Contracts", heading: "NAME\tSERVICE\tPARTIES\tFLOWS",
		all: (*registry.Registry).Contracts, id: func(k *registry.Contract) string { return k.Name },
		row: func(_ *registry.Registry, k *registry.Contract) string {
			return fmt.Sprintf("%s\t%s\t%s, %s\t%d", k.Name, k.Service, k.Parties[0].Device, k.Parties[1].Device, len(k.Flows))
		},
		show: func(_ context.Context, _ *sp.Centre, r *registry.Registry, k *registry.Contract) (any, error) {
			state := "in force"
			if err := r.InForce(k, time.Now()); err != nil {
				state = err.Error()
			}
			return struct {
				*registry.Contract
				Now string `json:"now"`
			}{k, state}, nil
		},
	})
}

func (c *cli) serviceCommand() *cobra.Command {
	cmd := objectCommand(c, kind[registry.Service]{
		name: "service", title: "Services (VPN groups)", heading: "NAME\tCATEGORY\tMEMBERS\tTITLE",
		all: (*registry.Registry).Services, id: func(s *registry.Service) string { return s.Name },
		row: func(r *registry.Registry, s *registry.Service) string {
			n := 0
			for range r.MembersOf(s.Name) {
				n++
			}
			return fmt.Sprintf("%s\t%s\t%d\t%q", s.Name, s.Category, n, s.Title)
		},
		show: func(_ context.Context, _ *sp.Centre, r *registry.Registry, s *registry.Service) (any, error) {
			members := []registry.Membership{}
			for m := range r.MembersOf(s.Name) {
				members = append(members, *m)
			}
			return struct {
				*registry.Service
				Memberships []registry.Membership `json:"memberships"`
			}{s, members}, nil
		},
	})
	cmd.AddCommand(&cobra.Command{
		Use: "ca NAME", Short: "Make a service's CA, or the next one; or its pre-shared key", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRegistry(cmd, func(_ context.Context, centre *sp.Centre, r *registry.Registry) error {
				made, err := centre.MakeServiceKey(r, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, map[string]string{"made": made}, made+" is made; instances take it up within a minute\n")
			})
		},
	})
	return cmd
}

// shownDevice is a device with its state.
type shownDevice struct {
	*registry.Device
	Memberships  []registry.Membership `json:"memberships"`
	Policy       *shownPolicy          `json:"policy,omitempty"`
	Certificates []shownCertificate    `json:"certificates"` // the newest ones
	Report       *shownReport          `json:"report,omitempty"`
}

type shownPolicy struct {
	Serial   uint64         `json:"serial"`
	Revision store.Revision `json:"revision"`
	Created  time.Time      `json:"created"`
	NotAfter time.Time      `json:"not_after"`
}

type shownCertificate struct {
	Service  string    `json:"service"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Ends     time.Time `json:"ends,omitzero"`
}

type shownReport struct {
	Seen         time.Time               `json:"seen"`
	Version      string                  `json:"version"`
	PolicySerial uint64                  `json:"policy_serial"`
	NotAfter     time.Time               `json:"not_after,omitzero"`
	Connections  []store.ConnectionState `json:"connections"`
	Errors       []store.ReportedError   `json:"errors"`
}

func showDevice(ctx context.Context, centre *sp.Centre, r *registry.Registry, d *registry.Device) (any, error) {
	st := centre.Store()
	out := &shownDevice{Device: d, Memberships: orNone(r.MembershipsOf(d.Name)), Certificates: []shownCertificate{}}
	head, err := st.LatestHead(ctx, d.Name)
	switch {
	case err == nil:
		out.Policy = &shownPolicy{head.Serial, head.Revision, head.Created, head.NotAfter}
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	list, err := st.CertificatesOf(ctx, d.Name, 10)
	if err != nil {
		return nil, err
	}
	for i := range list {
		out.Certificates = append(out.Certificates, shownCertificate{list[i].Service, list[i].Serial, list[i].NotAfter, list[i].Ends})
	}
	rep, err := st.Report(ctx, d.Name)
	switch {
	case err == nil:
		out.Report = &shownReport{rep.Seen, rep.Version, rep.PolicySerial, rep.NotAfter, orNone(rep.Connections), orNone(rep.Errors)}
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	return out, nil
}

var reasons = map[string]store.Reason{
	"stolen": store.KeyCompromise, "left": store.AffiliationChanged, "gone": store.CessationOfOperation, "withdrawn": store.PrivilegeWithdrawn,
}

func (c *cli) deviceCommand() *cobra.Command {
	cmd := objectCommand(c, kind[registry.Device]{
		name: "device", title: "Devices", heading: "NAME\tMEMBER\tSTATE",
		all: (*registry.Registry).Devices, id: func(d *registry.Device) string { return d.Name },
		row: func(_ *registry.Registry, d *registry.Device) string {
			return fmt.Sprintf("%s\t%s\t%s", d.Name, d.Member, d.State)
		},
		show: showDevice,
	})
	var reason, why string
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Shut a device out: its certificates, its connections, its policy", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, ok := reasons[reason]
			if !ok {
				return fmt.Errorf("%w: --reason: expected stolen, left, gone or withdrawn, came %q", errUsage, reason)
			}
			return c.with(cmd, func(ctx context.Context, centre *sp.Centre) error {
				done, err := centre.RevokeDevice(ctx, args[0], r, who(), why)
				if err != nil {
					return err
				}
				return c.print(cmd, done, fmt.Sprintf("%s is revoked (revision %d): %d certificates revoked, %d peers get new policies\n", done.Device, done.Revision, done.Certificates, len(done.Peers)))
			})
		},
	}
	revoke.Flags().StringVar(&reason, "reason", "stolen", "stolen, left, gone or withdrawn")
	revoke.Flags().StringVar(&why, "why", "", "for the history")
	cmd.AddCommand(revoke)
	return cmd
}

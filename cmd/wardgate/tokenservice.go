package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"wardgate/internal/certs"
	"wardgate/pkichip"
	"wardgate/router/control"
)

// tokenServiceCommand is `wardgate token service`: what layer 2 has for the VPN services. The centre
// looks after it by itself (docs/sp.md); these commands are for devices without one, and for
// trouble.
func tokenServiceCommand(o *tokenOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "List, replace and delete what the token has for VPN services (layer 2)",
		Long: "A running daemon is told of changes and reads the token again; without one they are there when\n" +
			"it starts.",
	}
	cmd.AddCommand(tokenServiceListCommand(o), tokenServiceReplaceCommand(o), tokenServiceDeleteCommand(o))
	return cmd
}

func tokenServiceListCommand(o *tokenOptions) *cobra.Command {
	return &cobra.Command{
		Use: "list", Args: exactly(), Short: "Keys and certificates of the services",
		Long: "One line for each key or certificate: also keys that wait for their certificate, certificates whose\n" +
			"key is missing, and what a change that was cut short has left over.",
		RunE: o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, _ []string) error {
			all, err := entries(ctx, chip, c.now(), nil)
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(e tokenEntry) bool { return e.Layer != int(pkichip.LayerService) })
			return c.answer(map[string]any{"services": all}, func(p *printer) {
				if len(all) == 0 {
					p.line("The token has nothing for any service. Begin with: wardgate token csr --service NAME --name DNS-NAME")
					return
				}
				writeEntries(p, all)
			})
		}),
	}
}

func tokenServiceDeleteCommand(o *tokenOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Args: exactly("the name of a service"), Short: "Remove all that the token has for a service",
		Long: "Removes the service's keys, certificates and intermediates, and says which connections depend on them.\n" +
			"Asks before it does; --yes answers.",
	}
	var yes bool
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error {
		have, err := serviceOf(ctx, chip, args[0])
		if err != nil {
			return err
		}
		names, known := c.dependents(ctx, args[0])
		if !yes {
			question := fmt.Sprintf("Delete %s of service %s? %s", howMany(len(have)), plain(args[0]), dependentsText(names, known))
			if err := confirm(c, question); err != nil {
				return err
			}
		}
		if err := chip.Delete(ctx, args[0]); err != nil {
			return err
		}
		t := c.reload(ctx)
		answer := map[string]any{"deleted": args[0], "daemon": t.Daemon}
		if known {
			answer["connections"] = names
		}
		if t.Trouble != "" {
			answer["trouble"] = t.Trouble
		}
		return c.answer(answer, func(p *printer) {
			p.line("Service %s is no longer on the token. %s", plain(args[0]), dependentsText(names, known))
			t.write(p)
		})
	})
	return cmd
}

func howMany(n int) string {
	if n == 1 {
		return "the key or certificate"
	}
	return fmt.Sprintf("the %d keys and certificates", n)
}

// serviceOf lists what the token has for a service: at least one thing.
func serviceOf(ctx context.Context, chip *pkichip.Chip, service string) ([]pkichip.Credential, error) {
	all, err := chip.List(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(x pkichip.Credential) bool { return x.Layer != pkichip.LayerService || x.Service != service })
	if len(all) == 0 {
		return nil, failed(control.KindToken, "no-key", fmt.Sprintf("the token has nothing for the service %s", certs.Quote(service)), "see: wardgate token service list", nil)
	}
	return all, nil
}

func tokenServiceReplaceCommand(o *tokenOptions) *cobra.Command {
	var r keyRequest
	var s storeRequest
	var certificate string
	cmd := &cobra.Command{
		Use: "replace NAME", Args: exactly("the name of a service"), Short: "Replace a service's key and certificate, in two steps",
		Long: "First makes a new key on the token and a request for its certificate; name and kind of key are those of\n" +
			"the present certificate, unless flags say otherwise. Then, with --certificate, writes the certificate\n" +
			"that was issued and removes the old key and certificate, which serve until then:\n\n" +
			"  wardgate token service replace group-a --out a.csr\n" +
			"  wardgate token service replace group-a --certificate a.pem --ca group-a-root.pem",
	}
	f := cmd.Flags()
	f.StringVar(&r.name, "name", "", "DNS name that the certificate shall have; default: the present one's")
	f.StringVar(&r.kind, "key-type", "", "p256, p384, rsa2048, rsa3072 or ed25519; default: the present one's")
	f.StringVar(&r.out, "out", "", "file for the request (PEM); default: standard output")
	f.StringVar(&certificate, "certificate", "", "second step: file with the certificate that was issued (PEM, leaf first, then intermediates)")
	s.flags(f)
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error {
		service := args[0]
		if certificate != "" {
			s.layer, s.service = pkichip.LayerService, service
			return s.run(ctx, c, chip, certificate)
		}
		if len(s.cas)+len(s.crls) > 0 {
			return badUsage("give --certificate, or leave --ca and --crl", "expected --certificate with --ca and --crl, came nothing")
		}
		have, err := serviceOf(ctx, chip, service)
		if err != nil {
			return err
		}
		r.layer, r.service = pkichip.LayerService, service
		r.next = fmt.Sprintf("wardgate token service replace %s --certificate CERTIFICATE.pem --ca CA.pem", plain(service))
		for _, x := range have {
			if x.Cert == nil {
				r.voids = r.voids || x.Signer != nil
				continue
			}
			if r.name == "" && len(x.Cert.DNSNames) > 0 {
				r.name = x.Cert.DNSNames[0]
			}
			if r.kind == "" && x.Signer != nil {
				r.kind = string(kindOf(x.Signer.Public()))
			}
		}
		if r.kind == "" {
			r.kind = string(pkichip.P256)
		}
		return r.run(ctx, c, chip)
	})
	return cmd
}

// kindOf is the kind of a key as Generate takes it; one that it does not make gives the default.
func kindOf(pub crypto.PublicKey) pkichip.KeyType {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return pkichip.P384
		}
	case *rsa.PublicKey:
		if k.N.BitLen() > 2048 {
			return pkichip.RSA3072
		}
		return pkichip.RSA2048
	case ed25519.PublicKey:
		return pkichip.Ed25519
	}
	return pkichip.P256
}

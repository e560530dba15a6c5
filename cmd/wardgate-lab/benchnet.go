package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/benchjson"
	"wardgate/internal/lab"
)

func benchNetCommand() *cobra.Command {
	var (
		bin, out        string
		rounds, seconds int
	)
	cmd := &cobra.Command{
		Use:   "bench-net --out FILE",
		Short: "iperf3 through two routers, and beside them, in network namespaces (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if rounds < 1 || seconds < 1 {
				return fmt.Errorf("%w: ROUNDS=%d SECONDS=%d: want at least 1 of each", errUsage, rounds, seconds)
			}
			ctx := cmd.Context()
			l, err := lab.New(ctx, lab.Options{Name: "bench", Bin: bin})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, l.Close()) }()
			h, err := lab.NewHospital(ctx, l, 0)
			if err != nil {
				return err
			}
			if err := openForIperf(h); err != nil {
				return err
			}
			if err := errors.Join(h.Enrol(ctx), h.Start(ctx)); err != nil {
				return err
			}
			if err := h.InstallPolicies(ctx); err != nil {
				return err
			}
			results, err := benchNet(ctx, h, rounds, seconds)
			if err != nil {
				return err
			}
			return writeResults(out, results)
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "build/bin", "folder of wardgated, wardgate and wardgate-chip")
	cmd.Flags().StringVar(&out, "out", "", "file for the JSON lines; replaced")
	cmd.Flags().IntVar(&rounds, "rounds", 3, "rounds; subjects take turns in each")
	cmd.Flags().IntVar(&seconds, "seconds", 5, "length of one measurement")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

const iperfPort = 5201

// openForIperf lets B's modality measure towards A's archive, and lays the raw cable beside the
// tunnel: the same two hosts, joined directly.
func openForIperf(h *lab.Hospital) error {
	lanB, archive := h.Modality.Zone.Prefix.String(), h.Archive.Addr.String()
	for _, proto := range []string{"tcp", "udp"} {
		h.AB.Flows = append(h.AB.Flows, lab.Agreed{Name: "iperf-" + proto, From: h.B, Src: []string{lanB}, Dst: []string{archive}, Protocol: proto, Ports: []string{strconv.Itoa(iperfPort)}})
	}
	return errors.Join(
		lab.Cable(h.Modality.Netns, "raw", h.Archive.Netns, "raw"),
		h.Modality.Netns.Addr("raw", "198.19.0.1/30"),
		h.Archive.Netns.Addr("raw", "198.19.0.2/30"),
	)
}

func benchNet(ctx context.Context, h *lab.Hospital, rounds, seconds int) ([]benchjson.Result, error) {
	server, err := h.Lab.Start(h.Archive.Netns, "iperf3", nil, "iperf3", "-s", "-p", strconv.Itoa(iperfPort))
	if err != nil {
		return nil, err
	}
	if err := h.Archive.WaitListening(ctx, "tcp", iperfPort, server); err != nil {
		return nil, err
	}
	subjects := []struct{ name, to string }{
		{"raw-veth", "198.19.0.2"},
		{"wardgate-aes256gcm16", h.Archive.Addr.String()},
	}
	tests := []struct {
		name string
		args []string
	}{
		{"tcp1", nil},
		{"tcp4", []string{"-P", "4"}},
		{"tcp1-reverse", []string{"-R"}},
		{"udp1372", []string{"-u", "-b", "0", "-l", "1372"}},
		{"udp200", []string{"-u", "-b", "0", "-l", "200"}},
	}
	var out []benchjson.Result
	for round := 1; round <= rounds; round++ {
		for _, s := range subjects {
			for _, t := range tests {
				fmt.Printf("round %d of %d: %s %s\n", round, rounds, s.name, t.name)
				got, err := iperf(ctx, h.Modality, s.to, seconds, t.args)
				if err != nil {
					return nil, fmt.Errorf("%s %s: %w", s.name, t.name, err)
				}
				for _, m := range got {
					out = append(out, benchjson.Result{Subject: s.name, Test: t.name, Value: m.value, Unit: m.unit, Round: round})
				}
			}
		}
		for _, d := range []struct {
			f    *lab.Facility
			test string
		}{{h.A, "rss-a"}, {h.B, "rss-b"}} {
			rss, err := d.f.Daemon.RSS()
			if err != nil {
				return nil, err
			}
			out = append(out, benchjson.Result{Subject: "wardgate-aes256gcm16", Test: d.test, Value: float64(rss>>10) / 1024, Unit: "MiB", Round: round})
		}
	}
	return out, nil
}

type measure struct {
	value float64
	unit  string
}

// iperf runs one client and returns what the receiver got.
func iperf(ctx context.Context, from *lab.Host, to string, seconds int, args []string) ([]measure, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+20)*time.Second)
	defer cancel()
	all := append([]string{"-c", to, "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(seconds), "-J"}, args...)
	text, err := from.Command(ctx, "iperf3", all...).Output()
	var r struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sent struct {
				Retransmits float64 `json:"retransmits"`
			} `json:"sum_sent"`
			Sum struct {
				Bits    float64 `json:"bits_per_second"`
				Packets float64 `json:"packets"`
				Lost    float64 `json:"lost_percent"`
			} `json:"sum"`
		} `json:"end"`
	}
	if jsonErr := json.Unmarshal(text, &r); jsonErr != nil {
		return nil, errors.Join(err, jsonErr)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	if err != nil {
		return nil, err
	}
	if r.End.Sum.Packets > 0 { // UDP: the sum is what was sent
		return []measure{{r.End.Sum.Bits / 1e6 * (1 - r.End.Sum.Lost/100), "Mbit/s"}, {r.End.Sum.Lost, "%-lost"}}, nil
	}
	return []measure{{r.End.Received.Bits / 1e6, "Mbit/s"}, {r.End.Sent.Retransmits, "retransmits"}}, nil
}

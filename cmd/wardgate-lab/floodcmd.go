package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/lab"
)

func floodCommand() *cobra.Command {
	var bin string
	t := lab.FloodTrial{Pin: true}
	cmd := &cobra.Command{
		Use:   "flood",
		Short: "Spoofed IKE_SA_INIT requests at a router on one processor, and how honest peers fare (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if t.Rate < 1 || t.For < time.Second || t.Honest < 1 {
				return fmt.Errorf("%w: %v requests/s for %v, %d connections: want at least 1, 1s and 1", errUsage, t.Rate, t.For, t.Honest)
			}
			l, err := lab.New(cmd.Context(), lab.Options{Name: "flood", Bin: bin})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, l.Close()) }()
			r, err := l.Flooded(cmd.Context(), t)
			if err != nil {
				return err
			}
			fmt.Printf("spoofed IKE_SA_INIT: %d in %v, %.0f a second; the router used %.0f %% of one processor\n",
				r.Sent, r.Took.Round(time.Millisecond), float64(r.Sent)/r.Took.Seconds(), 100*r.CPU.Seconds()/r.Took.Seconds())
			for _, h := range []struct {
				when string
				lab.Honest
			}{{"in quiet", r.Quiet}, {"under the flood", r.Under}} {
				fmt.Printf("honest connections %-15s %d of %d came up (%.1f %%), median %v", h.when+":", h.Up, h.Tried, 100*float64(h.Up)/float64(h.Tried), h.Median().Round(10*time.Microsecond))
				if n := len(h.Times); n > 0 {
					fmt.Printf(", 90 %% within %v, worst %v", h.Times[n*9/10].Round(10*time.Microsecond), h.Times[n-1].Round(10*time.Microsecond))
				}
				fmt.Println()
			}
			if q := r.Quiet.Median(); q > 0 {
				fmt.Printf("median under the flood: %.1f times the quiet one\n", float64(r.Under.Median())/float64(q))
			}
			if t.Return {
				fmt.Printf("requests that came again with their cookies: %d\n", r.Returned)
			}
			fmt.Printf("level of defence: none %v, cookie %v, puzzle %v; at most %d zero bits, at most %d IKE SAs half-open\n", r.Levels[0], r.Levels[1], r.Levels[2], r.Difficulty, r.HalfOpen)
			fmt.Printf("requests answered with a cookie %d, with a puzzle %d; let in with a solution %d, by lot %d; without one not let in %d, no room %d, malformed %d\n",
				r.Answers["ike_defence_cookies"], r.Answers["ike_defence_puzzles"], r.Answers["ike_defence_solved"], r.Answers["ike_defence_lot_won"],
				r.Answers["ike_defence_dropped"], r.Answers["ike_defence_no_room"], r.Answers["ike_defence_malformed"])
			fmt.Printf("datagrams that the router's sockets had no room for: %d, %.2f %%\n", r.NoRoom, 100*float64(r.NoRoom)/float64(max(r.Sent, 1)))
			fmt.Printf("resident memory of the router: %d MiB before, %d MiB at most during, %d MiB after\n", r.RSS[0]>>20, r.RSS[1]>>20, r.RSS[2]>>20)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "build/bin", "folder of wardgated, wardgate and wardgate-chip")
	f.Float64Var(&t.Rate, "rate", 50_000, "spoofed requests per second")
	f.DurationVar(&t.For, "for", 30*time.Second, "how long")
	f.BoolVar(&t.Return, "return-cookies", false, "the attackers return their cookies, and solve no puzzles")
	f.IntVar(&t.Honest, "honest", 200, "honest connections, in quiet and again under the flood")
	return cmd
}

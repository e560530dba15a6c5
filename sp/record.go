package sp

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/est"
	"wardgate/sp/store"
)

const (
	recordQueue = 4096 // events that wait to be written
	recordBatch = 256
)

// events writes what the network makes happen to the record, without making requests wait for the
// disk. What cannot be kept up with is counted, and the count is recorded.
type events struct {
	st  *store.Store
	log *slog.Logger
	now func() time.Time
	in  chan store.Event
}

func newEvents(c *Centre) *events {
	return &events{st: c.st, log: c.log, now: c.now, in: make(chan store.Event, recordQueue)}
}

var _ est.Recorder = (*events)(nil)

func (e *events) put(v store.Event) {
	v.At = e.now()
	select {
	case e.in <- v:
	default:
		e.log.Error("the record cannot keep up, an event is not in it", "event", v.Event, "who", certs.Quote(v.Who), "what", certs.Quote(v.What))
	}
}

// run writes until its context ends, and then what is left.
func (e *events) run(ctx context.Context) {
	for {
		select {
		case v := <-e.in:
			e.write(context.WithoutCancel(ctx), v)
		case <-ctx.Done():
			for {
				select {
				case v := <-e.in:
					e.write(context.WithoutCancel(ctx), v)
				default:
					return
				}
			}
		}
	}
}

func (e *events) write(ctx context.Context, first store.Event) {
	list := []store.Event{first}
	for len(list) < recordBatch {
		select {
		case v := <-e.in:
			list = append(list, v)
			continue
		default:
		}
		break
	}
	if err := e.st.Record(ctx, list...); err != nil {
		e.log.Error("events cannot be recorded", "events", len(list), "error", err)
	}
}

// Enrolled implements est.Recorder.
func (e *events) Enrolled(_ context.Context, v est.Enrolment) {
	e.put(store.Event{Event: "enrolment", Who: v.Device, What: v.Service, Where: v.Remote, Result: store.ResultOK, Detail: map[string]string{
		"operation": v.Operation, "client": v.Client, "serial": store.SerialText(v.Certificate.SerialNumber),
		"again": strconv.FormatBool(v.Again), "bound": strconv.FormatBool(v.Bound), "proven": strconv.FormatBool(v.Proven),
	}})
}

// Refused implements est.Recorder.
func (e *events) Refused(_ context.Context, r *est.Refusal) {
	who := r.Device
	if who == "" {
		who = r.Client
	}
	e.put(store.Event{Event: "enrolment-refused", Who: who, What: r.Service, Where: r.Remote, Result: store.ResultRefused, Detail: map[string]string{
		"code": r.Class.Code(), "operation": r.Operation, "expected": r.Expected, "came": r.Got,
	}})
}

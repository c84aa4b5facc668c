package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// warehouse is another service, in the same process, with a connection to it.
type warehouse struct {
	*service
	server *grpc.Server
	served chan error
	conn   *grpc.ClientConn
}

// warehouseService is what protoc would generate.
var warehouseService = grpc.ServiceDesc{
	ServiceName: "shop.Warehouse",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Reserve", Handler: func(
		w any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		if err := read(new(emptypb.Empty)); err != nil {
			return nil, err
		}
		return w.(*warehouse).reserve(ctx)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Track", ServerStreams: true, Handler: func(w any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
			return err
		}
		return w.(*warehouse).track(stream)
	}}},
}

func newWarehouse(s *service) (*warehouse, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	options := []otelgrpc.Option{
		otelgrpc.WithTracerProvider(s.tracers), otelgrpc.WithMeterProvider(s.meters), otelgrpc.WithPropagators(propagation.TraceContext{}),
	}
	conn, err := grpc.NewClient("passthrough:///"+ln.Addr().String(), grpc.WithNoProxy(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(options...)))
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	w := &warehouse{s, grpc.NewServer(grpc.StatsHandler(otelgrpc.NewServerHandler(options...))), make(chan error, 1), conn}
	w.server.RegisterService(&warehouseService, w)
	go func() { w.served <- w.server.Serve(ln) }()
	return w, nil
}

func (w *warehouse) close() error {
	err := w.conn.Close()
	w.server.Stop()
	return errors.Join(err, <-w.served)
}

// reserve answers the unary call. Its mistake: it waits until the goods are on their shelf.
func (w *warehouse) reserve(context.Context) (*wrapperspb.StringValue, error) {
	time.Sleep(slowly)
	return wrapperspb.String("reserved"), nil
}

// track sends a message for each thing that happens to a shipment.
func (w *warehouse) track(stream grpc.ServerStream) error {
	if err := stream.SendMsg(wrapperspb.String("picked")); err != nil {
		return err
	}
	if err := w.pack(stream.Context()); err != nil {
		return err
	}
	return stream.SendMsg(wrapperspb.String("packed"))
}

// pack asks the partner for a parcel. Its mistake: it does so only when a shipment needs one.
func (w *warehouse) pack(ctx context.Context) error {
	var parcel int
	return w.fetch(ctx, "/partner/parcel", &parcel)
}

// reserve reserves goods. Its mistake: it waits for the warehouse, and the customer with it.
func (s *shop) reserve(r *http.Request) (any, error) {
	var answer wrapperspb.StringValue
	err := s.warehouse.conn.Invoke(r.Context(), "/shop.Warehouse/Reserve", new(emptypb.Empty), &answer)
	return answer.GetValue(), err
}

// shipment returns what happened to a shipment. Its mistake: it waits for all messages before it sends one.
func (s *shop) shipment(r *http.Request) (any, error) {
	stream, err := s.warehouse.conn.NewStream(r.Context(), &warehouseService.Streams[0], "/shop.Warehouse/Track")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(stream.SendMsg(new(emptypb.Empty)), stream.CloseSend()); err != nil {
		return nil, err
	}
	var happened []string
	for {
		var message wrapperspb.StringValue
		switch err := stream.RecvMsg(&message); err {
		case nil:
			happened = append(happened, message.GetValue())
		case io.EOF:
			return happened, nil
		default:
			return nil, err
		}
	}
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

func interfaces() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Flags&net.FlagLoopback != 0 {
			_, err := one.Addrs()
			return err
		}
	}
	return errors.New("there is no loopback interface")
}

func listen() error {
	for _, network := range []string{"tcp", "tcp4"} {
		listener, err := net.Listen(network, "127.0.0.1:0")
		if err != nil {
			return step(network, err)
		}
		if listener.Addr().(*net.TCPAddr).Port == 0 {
			err = errors.New("no port was given")
		}
		listener.Close()
		if err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		return step("all addresses", err)
	}
	defer listener.Close()
	listener.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := listener.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("accept: %v", err)
	}
	// A copy of the descriptor, as for a graceful restart.
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return step("file of a listener", err)
	}
	defer file.Close()
	again, err := net.FileListener(file)
	if err != nil {
		return step("listener of a file", err)
	}
	return again.Close()
}

func unixListen() error {
	return withUnixListener(func(net.Listener) error { return nil })
}

func unixConnect() error {
	return withUnixListener(func(listener net.Listener) error {
		go echo(listener)
		return say("unix", listener.Addr().String())
	})
}

func withUnixListener(use func(net.Listener) error) error {
	dir, err := os.MkdirTemp("", "exercise-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	listener, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	defer listener.Close()
	return use(listener)
}

func echo(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

func say(network, address string) error {
	connection, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := connection.Write([]byte("echo")); err != nil {
		return err
	}
	var back [4]byte
	if _, err := io.ReadFull(connection, back[:]); err != nil {
		return err
	}
	if string(back[:]) != "echo" {
		return fmt.Errorf("echoed %q", back)
	}
	return nil
}

func certificate() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "exercise"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, nil
}

func tlsInMemory() error {
	own, pool, err := certificate()
	if err != nil {
		return err
	}
	// Where the certificates of the machine are is part of what a sandbox has to give.
	if _, err := x509.SystemCertPool(); err != nil {
		return step("the certificates of this machine", err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{own}})
	go io.Copy(server, server)
	client := tls.Client(b, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Write([]byte("echo")); err != nil {
		return err
	}
	_, err = io.ReadFull(client, make([]byte, 4))
	return err
}

func serveHTTP() error {
	return requests(200, nil, http.DefaultTransport.(*http.Transport).Clone(), "HTTP/1.1")
}

func serveHTTPS() error {
	own, pool, err := certificate()
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	return requests(50, &own, transport, "HTTP/2.0")
}

func requests(count int, own *tls.Certificate, transport *http.Transport, protocol string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Proto, body)
	})}
	url := "http://" + listener.Addr().String()
	if own != nil {
		url = "https://" + listener.Addr().String()
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*own}}
		go server.ServeTLS(listener, "", "")
	} else {
		go server.Serve(listener)
	}
	// A proxy that the environment names would be asked for an address of this machine.
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = 16
	client := &http.Client{Transport: transport, Timeout: 15 * time.Second}
	limit := make(chan struct{}, 16)
	errs := make(chan error, count)
	for i := 0; i < count; i++ {
		go func() {
			limit <- struct{}{}
			errs <- post(client, url, protocol+" hello")
			<-limit
		}()
	}
	for i := 0; i < count; i++ {
		if err := <-errs; err != nil {
			return err
		}
	}
	transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return step("shutdown", server.Shutdown(ctx))
}

func post(client *http.Client, url, want string) error {
	body, writer := io.Pipe()
	go func() {
		io.WriteString(writer, "hello")
		writer.Close()
	}()
	response, err := client.Post(url, "text/plain", body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && string(answer) != want {
		err = fmt.Errorf("answered %q instead of %q", answer, want)
	}
	return err
}

// dns reads /etc/hosts by way of Go's own resolver, then asks a server of its own for what is not in there.
func dns() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	own := &net.Resolver{PreferGo: true}
	if _, err := own.LookupHost(ctx, "localhost"); err != nil {
		return step("localhost", err)
	}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	go answerDNS(server)
	asking := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	found, err := asking.LookupIP(ctx, "ip4", "tenant.test.")
	if err == nil && (len(found) != 1 || !found[0].Equal(net.IPv4(192, 0, 2, 7))) {
		err = fmt.Errorf("found %v", found)
	}
	return step("tenant.test", err)
}

// answerDNS says 192.0.2.7 to every question of type A.
func answerDNS(server net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := server.ReadFrom(buffer)
		if err != nil {
			return
		}
		if n < 17 {
			continue
		}
		end := 12
		for end < n && buffer[end] != 0 {
			end += int(buffer[end]) + 1
		}
		end += 5 // the zero, type, class
		if end > n {
			continue
		}
		answer := append([]byte{}, buffer[:end]...)
		binary.BigEndian.PutUint16(answer[2:], 0x8180)
		for at, count := range []uint16{1, 1, 0, 0} {
			binary.BigEndian.PutUint16(answer[4+2*at:], count)
		}
		// A pointer to the name in the question, A, IN, a minute, four bytes.
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7)
		server.WriteTo(answer, from)
	}
}

func udp() error {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		buffer := make([]byte, 64)
		n, from, err := server.ReadFrom(buffer)
		if err == nil {
			server.WriteTo(buffer[:n], from)
		}
	}()
	return say("udp", server.LocalAddr().String())
}

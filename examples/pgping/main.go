// Pgping logs in to a PostgreSQL server through its unix socket, as a driver would, and says whether it was let in. It
// speaks the few bytes of the protocol that this takes (PostgreSQL manual, "Message Formats") and sends no password: what
// lets it in is peer authentication, by which the server asks the kernel whose process is at the other end.
//
// It prints "authenticated as ROLE" and exits 0, or prints the server's answer and exits 1.
//
// Usage: pgping [-role NAME] [-database NAME] SOCKET
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

const protocol = 3 << 16 // 3.0

func main() {
	role := flag.String("role", "postgres", "who to log in as")
	database := flag.String("database", "postgres", "what to log in to")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := login(flag.Arg(0), *role, *database); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("authenticated as", *role)
}

func login(socket, role, database string) error {
	conn, err := net.DialTimeout("unix", socket, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(startup(role, database)); err != nil {
		return err
	}
	from := bufio.NewReader(conn)
	for {
		kind, body, err := message(from)
		if err != nil {
			return err
		}
		switch kind {
		case 'E':
			return errors.New(text(body))
		case 'R':
			// AuthenticationOk is 0; every other number asks for something.
			if len(body) < 4 || binary.BigEndian.Uint32(body) != 0 {
				return fmt.Errorf("the server asks for more: authentication request % x", body)
			}
		case 'Z': // ReadyForQuery
			_, err := conn.Write([]byte{'X', 0, 0, 0, 4})
			return err
		}
	}
}

// startup is the one message without a type: length, version, pairs of names and values, NUL.
func startup(role, database string) []byte {
	body := "user\x00" + role + "\x00database\x00" + database + "\x00\x00"
	bytes := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint32(bytes, uint32(8+len(body)))
	binary.BigEndian.PutUint32(bytes[4:], protocol)
	return append(bytes, body...)
}

func message(from io.Reader) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > 1<<20 {
		return 0, nil, fmt.Errorf("not a PostgreSQL server: a message of %d bytes", length)
	}
	body := make([]byte, length-4)
	_, err := io.ReadFull(from, body)
	return head[0], body, err
}

// text is the severity and the message of an ErrorResponse.
func text(body []byte) string {
	var severity, said string
	for _, field := range strings.Split(string(body), "\x00") {
		switch {
		case strings.HasPrefix(field, "S"):
			severity = field[1:]
		case strings.HasPrefix(field, "M"):
			said = field[1:]
		}
	}
	return severity + ": " + said
}

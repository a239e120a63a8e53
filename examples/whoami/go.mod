module gosandbox.example/whoami

go 1.19

module gosandbox.example/plain

go 1.19

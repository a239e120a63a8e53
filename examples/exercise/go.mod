module gosandbox.example/exercise

go 1.19
